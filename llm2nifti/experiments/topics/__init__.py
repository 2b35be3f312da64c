"""Would other topics of a task activate the same units?"""
