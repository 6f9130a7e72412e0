"""VLM critics: a vision-language model, in this process or on a server, and a prompt template."""
