"""What `experiments.benchmark` compares with, each as its users write it."""
