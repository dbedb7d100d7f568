"""The video data module shared by every stage."""
