"""Runs on real data that state their claims beforehand and say whether they hold."""
