"""The critique stage: asks a critic, keeps every answer."""
