"""How repeatable and how distinct are the tasks' maps?"""
