"""The denoiser network. The only room that imports flax; outside it parameters are a plain nested dict."""
