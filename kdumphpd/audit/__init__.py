"""Would a crash right now give a complete vmcore?"""
