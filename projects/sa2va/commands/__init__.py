"""What people call. Every module has ``main(argv) -> exit code``; ``cli`` is the door to all of them."""
