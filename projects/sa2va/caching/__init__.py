"""Results of frozen parts, computed once: what can be cached (kinds), where it lies (store), how it gets there
(build)."""
