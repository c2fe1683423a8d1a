"""Text and commands for the scheduler, and what a site is. Standard library and yaml only."""
