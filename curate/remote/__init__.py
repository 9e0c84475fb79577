"""Sets and files elsewhere: uploaded when they are whole, and copied to this machine to be read."""
