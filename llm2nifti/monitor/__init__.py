"""Which networks are active while the model speaks?"""
