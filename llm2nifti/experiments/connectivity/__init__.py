"""How alike do the parts of a model represent what prompts evoke?"""
