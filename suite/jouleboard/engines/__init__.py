"""Engines: how tokens are computed. An engine is part of an entry's identity; costs are compared only within one."""
