"""What does a model lose with a network's weights?"""
