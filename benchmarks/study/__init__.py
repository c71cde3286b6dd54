"""Parts of ``benchmarks/preference_study.py``: the table of recipes, the splits, one run, the report."""
