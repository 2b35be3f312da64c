"""Where in a model, and when, is a task decodable?"""
