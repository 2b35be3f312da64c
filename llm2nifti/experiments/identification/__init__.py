"""Which task is a run, or a prompt, that the maps have never seen?"""
