"""Which properties of prompts explain how the parts of a model represent them?"""
