"""How far a critic agrees with people: their pairs, its answers through the store, what both say.

``votes`` is what people said, ``asking`` puts the same pairs to the critic, ``findings`` compares,
``verdict`` says it in words. The page is `ipo_lightning.audit.page`.
"""
