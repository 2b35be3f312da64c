"""Which units does a functional localizer find, and would other prompts find them again?"""
