"""The course that the notebooks make: its chapters, and checks of the exercises' answers."""
