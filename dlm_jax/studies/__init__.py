"""Experiments that can be run again with one command, `dlm study NAME`: one file each."""
