"""Sa2VA-DPO: preference training of Sa2VA mask predictions under MMEngine."""
