"""When do units respond to each task: at which of the generated tokens?"""
