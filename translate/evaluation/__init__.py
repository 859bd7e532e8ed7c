"""What is written above measures and inference: folders and runs evaluated, and the page that shows runs."""
