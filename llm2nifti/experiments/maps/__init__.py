"""Which units respond to each task?"""
