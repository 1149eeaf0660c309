"""What is said about a dataset before it is trained."""
