"""Agrees: PySyncObj behind a guard as a synchronous engine, and the replicated state it carries."""
