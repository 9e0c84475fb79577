"""Ask an OpenAI-compatible server many things: bounded, journalled, within a budget. Needs httpx."""
