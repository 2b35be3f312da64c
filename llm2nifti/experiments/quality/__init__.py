"""Are the controls like the task's prompts in all but their subject?"""
