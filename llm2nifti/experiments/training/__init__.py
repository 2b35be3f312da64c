"""Does it matter which modules are trained?"""
