"""Audit of a critic: how far it agrees with people on pairs of videos.

``votes`` has people's votes, ``asking`` the critic's answers about the same pairs, ``findings`` the
statistics, ``verdict`` the result in words, ``page`` and ``files`` the output.
"""
