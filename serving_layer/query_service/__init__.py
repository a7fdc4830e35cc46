"""The query service: analysts' SQL, models, applications and statistics over HTTP."""
