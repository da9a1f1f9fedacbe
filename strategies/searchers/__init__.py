"""Searchers propose configurations; each is a pure function of its history."""
