"""Pairs looked at by people: decisions in a journal, merged into the annotations, compared between reviewers."""
