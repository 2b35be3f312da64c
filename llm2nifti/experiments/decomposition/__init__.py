"""Which components and parcels do activations fall into, without any labels?"""
