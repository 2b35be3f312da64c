"""How well, and how early, do networks tell what a prompt is about?"""
