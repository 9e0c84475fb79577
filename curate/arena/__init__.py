"""Compare models blindly: the page that collects votes, and ratings of the models."""
