"""Jouleboard: which compressed variant of a language model gives the most correct answers for the energy I have?"""

__version__ = "0.1.0"
