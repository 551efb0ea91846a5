"""The glue between training and the cluster: ranks that train together, and a training that submits itself."""
