"""What happens without a network, or when a task's effect is added?"""
