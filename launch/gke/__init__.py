"""Google Kubernetes Engine: a JobSet manifest for TPU slices."""
