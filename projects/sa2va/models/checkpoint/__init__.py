"""Reading and writing the released checkpoint layout; the public door is ``models/hf_checkpoint.py``."""
