"""The web page: what the API has, for people. `docs/web.md`.

routes      who may ask, what is read; each change is made by the function that makes it for the API
views       domain values -> what a template shows. Pure
plot        rates over time -> SVG
templates   everything in them is escaped
session     a sealed cookie
guard       who is logged in, and that a form was sent from here
"""
