"""``report.html`` of a job or a test, and the card that goes with an exported model (docs/report.md)."""
