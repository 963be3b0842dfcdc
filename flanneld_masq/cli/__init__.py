"""What does each command do, and how is its output printed?"""
