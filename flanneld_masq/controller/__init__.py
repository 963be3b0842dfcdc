"""When is the next pass of a family, and who caused it?"""
