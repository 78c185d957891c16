"""Smaller students: teachers, what students start from, what is copied, and the methods that come with exitkit."""
