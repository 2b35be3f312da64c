"""What do several models have in common, in space, in geometry and in function?"""
