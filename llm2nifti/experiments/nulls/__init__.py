"""What does the test find where nothing is there?"""
