"""The measured tables as Django models, tracked by django-pghistory."""
