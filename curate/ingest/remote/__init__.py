"""Inputs elsewhere: on web servers, in object storage, and on the Hugging Face Hub."""
